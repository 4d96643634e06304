# examples/kubernetes/plugin-source.sh directory
# docker build -t registry.example.com/traefik-request-mirror:v3.7 -f examples/kubernetes/helm/traefik.Dockerfile examples/kubernetes/plugins-local
FROM traefik:v3.7
COPY go.mod .traefik.yml *.go /plugins-local/src/github.com/opencommit/requestmirror/
