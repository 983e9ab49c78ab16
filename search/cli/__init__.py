"""One file per command; with terminal/ the only place that parses arguments or prints."""
