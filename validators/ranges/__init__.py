"""How large the quantities inside a model become, and at which length they would leave the range of fp16."""
