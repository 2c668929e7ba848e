"""``kl_div`` for every config of a sweep: the model runs on from the layer that is quantized."""
