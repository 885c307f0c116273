"""The dice demo: a base that knows its task and gets it right about one time in four."""
