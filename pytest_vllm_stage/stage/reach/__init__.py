"""How a server of the stage is reached from here: the published addresses, and which of them is used."""
