"""Makes and inspects chaincode packages, for the operator's command. The daemon itself needs none of it."""
