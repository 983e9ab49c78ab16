"""The same search while its user is away: Ray Jobs, a lost head, the copy at an address."""
