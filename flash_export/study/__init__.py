"""The study: systems of the paper at equal size, trained alike, exported, validated and timed."""
