"""Ray itself: the cluster, its nodes, what a trial reserves, Tuner, searcher, scheduler and trainable."""
