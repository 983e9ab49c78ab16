"""What commands share: their arguments, their JSON object, the signals that end them, lines to paste."""
