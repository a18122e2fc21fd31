"""A server of the OpenAI protocol: requests join and leave running batches."""
