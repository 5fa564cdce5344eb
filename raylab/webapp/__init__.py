"""The page that takes a video: a server of its own, and the processes that look at what it is given."""
