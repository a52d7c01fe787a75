"""``enabler ui``: this host at a glance, as a page. A process of its own; asks the admin socket."""
