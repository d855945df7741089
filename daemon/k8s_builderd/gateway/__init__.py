"""The way in: the Unix socket, the protocol spoken on it, and what each of the four programs asks for."""
