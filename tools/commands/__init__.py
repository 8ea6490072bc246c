"""The commands of `apf`, each imported only when it is used (`tools.cli` has the table)."""
