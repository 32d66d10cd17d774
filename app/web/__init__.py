"""HTTP: the server, access, the routes, the formats of answers, live streams."""
