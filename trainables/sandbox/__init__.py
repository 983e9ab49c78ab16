"""A clean process for a trial: `Template` and `Child` here, their other ends in template_main and child_main."""
