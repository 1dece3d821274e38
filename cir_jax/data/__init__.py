"""Reading training data: records on disk and the pipeline that batches them."""
