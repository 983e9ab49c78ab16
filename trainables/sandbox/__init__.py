"""A clean process for each trial: the supervisor's side in `template` and `child`, the processes in template_main and child_main."""
