"""What is asked of ModelOpt: quant pairs, granularities, effective configs."""
