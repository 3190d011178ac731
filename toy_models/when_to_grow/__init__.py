"""When to grow, put to the test: problems, what is measured on one, rules, and the tables."""
