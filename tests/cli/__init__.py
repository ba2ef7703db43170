"""Tests of the commands, a folder for each that has one."""
