"""A launch from its request to the end of its chaincode. Knows no socket and no status code."""
