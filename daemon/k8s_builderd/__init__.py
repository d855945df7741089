"""k8s-builderd: runs Hyperledger Fabric chaincode on Kubernetes."""
