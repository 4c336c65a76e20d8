"""Small real data sets, each with its source and licence beside it, and batches out of tensors."""
