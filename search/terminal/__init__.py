"""What all commands share: arguments, the JSON object that they print, the signals that end them, command lines to paste."""
