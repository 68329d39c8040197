"""Where bytes lie that are no file of this machine by itself: in archives, behind addresses, in a cache of ours."""
