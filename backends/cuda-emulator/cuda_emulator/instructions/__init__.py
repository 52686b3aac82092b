"""What PTX instructions compute, on arrays over lanes: called by the generated functions."""
