"""Recording a suite of any checkpoint, a layer at a time; an interrupted recording continues."""
