"""zofo inside other libraries' trainers: `zofo.integrations.transformers` and `zofo.integrations.trl`.

Import each by its own name; the libraries they build on take seconds to import.
"""
