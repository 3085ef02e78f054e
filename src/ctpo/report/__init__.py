"""Pictures and pages made from the files a run wrote."""
