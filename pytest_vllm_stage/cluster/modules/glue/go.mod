module local/glue

go 1.24.0
