"""`--check`: what a folder holds and what is doubtful in it, without loading the model. Nothing serves from here."""
