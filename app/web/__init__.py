"""HTTP: the server, who may ask, the routes, the formats of answers, live streams."""
