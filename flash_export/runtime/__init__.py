"""Running a model: one class per backend, all behind the :class:`Runner` protocol."""
