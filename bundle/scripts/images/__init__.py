"""Images: from files to what the networks take, and back to the input's grid."""
