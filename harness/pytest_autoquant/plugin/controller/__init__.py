"""The controller's part of the plugin: take outcomes in, write every file, judge, sum up."""
