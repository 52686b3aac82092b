"""What PTX instructions compute, on arrays over lanes: called by the functions that are written."""
