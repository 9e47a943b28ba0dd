"""zofo inside other libraries' trainers: `zofo.integrations.transformers` and `zofo.integrations.trl`.

Each is imported by its own name, since what it builds on takes seconds to import.
"""
