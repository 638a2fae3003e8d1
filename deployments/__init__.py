"""Ray lives here and nowhere else: the applications, their deployments, the launcher and the command line."""
