"""Finished runs as a server that answers as OpenAI's, and as a page: a strength or classes per request, batched together"""
