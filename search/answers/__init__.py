"""What a search or a training says about its result, for people and in best.json."""
