"""The dashboard server under the name that users of PHILAB know: the same as `philab app`, with the same flags."""

from scripts.app import main

if __name__ == "__main__":
    raise SystemExit(main())
