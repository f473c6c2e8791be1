"""One file per screen: read state, ask `app`, draw. Run by path, never imported by the app."""
