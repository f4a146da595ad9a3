"""Tables, figures and files of the report: the parts of `report`."""
