{{/*
What a peer's own chart includes to get the sidecar. Each takes this chart's context: with this chart as a dependency that is
`index .Subcharts "k8s-builderd"`. They are made from shared/patch.yaml, which is what Kustomize applies.
*/}}

{{- define "k8s-builderd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "k8s-builderd.pod" -}}
{{- (.Files.Get "shared/patch.yaml" | fromYaml).spec.template.spec | toYaml -}}
{{- end -}}

{{/* A list for initContainers: the client's programs, and the native sidecar. */}}
{{- define "k8s-builderd.initContainers" -}}
{{- $context := . -}}
{{- $containers := list -}}
{{- range (include "k8s-builderd.pod" . | fromYaml).initContainers -}}
{{- $container := . -}}
{{- $_ := set $container "image" (include "k8s-builderd.image" $context) -}}
{{- $_ := set $container "imagePullPolicy" $context.Values.image.pullPolicy -}}
{{- $_ := set $container "resources" $context.Values.sidecar.resources -}}
{{- if $context.Values.sidecar.openshift -}}
{{- $_ := set $container "securityContext" (omit $container.securityContext "runAsUser" "runAsGroup") -}}
{{- end -}}
{{- if eq $container.name "k8s-builderd" -}}
{{- $env := $container.env -}}
{{- with $context.Values.chaincode.namespace -}}
{{- $env = append $env (dict "name" "FABRIC_K8S_BUILDER_NAMESPACE" "value" .) -}}
{{- end -}}
{{- with $context.Values.chaincode.podTemplate -}}
{{- $env = append $env (dict "name" "FABRIC_K8S_BUILDER_POD_TEMPLATE" "value" "/etc/k8s-builderd/pod-template.json") -}}
{{- $mount := dict "name" "k8s-builder-pod-template" "mountPath" "/etc/k8s-builderd" "readOnly" true -}}
{{- $_ := set $container "volumeMounts" (append $container.volumeMounts $mount) -}}
{{- end -}}
{{- if $context.Values.chaincode.sameNode -}}
{{- $node := dict "fieldRef" (dict "fieldPath" "spec.nodeName") -}}
{{- $env = append $env (dict "name" "FABRIC_K8S_BUILDER_NODE_NAME" "valueFrom" $node) -}}
{{- $env = append $env (dict "name" "FABRIC_K8S_BUILDER_SAME_NODE" "value" "true") -}}
{{- end -}}
{{- range $name, $value := $context.Values.settings -}}
{{- $env = append $env (dict "name" $name "value" $value) -}}
{{- end -}}
{{- $_ := set $container "env" $env -}}
{{- end -}}
{{- $containers = append $containers $container -}}
{{- end -}}
{{- toYaml $containers -}}
{{- end -}}

{{/* A list for volumes. */}}
{{- define "k8s-builderd.volumes" -}}
{{- $volumes := (include "k8s-builderd.pod" . | fromYaml).volumes -}}
{{- with .Values.chaincode.podTemplate -}}
{{- $volumes = append $volumes (dict "name" "k8s-builder-pod-template" "configMap" (dict "name" "k8s-builderd-pod-template")) -}}
{{- end -}}
{{- toYaml $volumes -}}
{{- end -}}

{{/* A list for volumeMounts of the peer's container. */}}
{{- define "k8s-builderd.peerVolumeMounts" -}}
{{- range (include "k8s-builderd.pod" . | fromYaml).containers -}}
{{- toYaml .volumeMounts -}}
{{- end -}}
{{- end -}}

{{/* Fields of the pod: service account, its token, and the socket's group. */}}
{{- define "k8s-builderd.podSpec" -}}
{{- $pod := omit (include "k8s-builderd.pod" . | fromYaml) "initContainers" "containers" "volumes" -}}
{{- $_ := set $pod "serviceAccountName" .Values.serviceAccount.name -}}
{{- if not .Values.serviceAccount.create -}}
{{- $pod = omit $pod "automountServiceAccountToken" -}}
{{- end -}}
{{- if .Values.sidecar.openshift -}}
{{- $pod = omit $pod "securityContext" -}}
{{- else -}}
{{- $_ := set $pod.securityContext "fsGroup" (int .Values.sidecar.fsGroup) -}}
{{- end -}}
{{- toYaml $pod -}}
{{- end -}}

{{- define "k8s-builderd.labels" -}}
app.kubernetes.io/name: k8s-builderd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "k8s-builderd.chaincodeNamespace" -}}
{{ .Values.chaincode.namespace | default .Release.Namespace }}
{{- end -}}
