"""Recording a suite of any checkpoint, a layer at a time, to be gone on with after an interrupt."""
