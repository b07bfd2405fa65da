"""Published figures: what papers print, under which protocol, and how a run's figures read in their way of counting."""
