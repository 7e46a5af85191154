"""Running a model: one class a backend, all behind the :class:`Runner` protocol."""
