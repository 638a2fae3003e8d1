"""One file a resource. A route parses, makes one call and shapes the answer."""
