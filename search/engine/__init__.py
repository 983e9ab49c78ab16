"""The connection to Ray: the cluster, its nodes, what a trial reserves, and Ray Tune's Tuner, searcher, scheduler and trainable."""
