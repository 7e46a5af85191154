"""How large values become with the length, and on which text that is measured; exporters and validators both ask."""
