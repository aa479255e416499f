"""The program `detkit`: LightningCLI's commands and the tools around them."""
