"""One file per screen: read state, ask the app, draw."""
